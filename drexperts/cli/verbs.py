"""All verbs of `drx`."""

from drexperts.cli import (
    bench,
    build,
    compare,
    convert_prior,
    demo,
    eval,
    explain,
    export,
    info,
    merge,
    reproduce,
    score,
    serve,
    synth,
    train,
    triton_repo,
    verify,
)

# In the order of the help.
VERBS = (
    demo,
    train,
    eval,
    reproduce,
    synth,
    explain,
    export,
    build,
    verify,
    score,
    merge,
    compare,
    serve,
    bench,
    info,
    triton_repo,
    convert_prior,
)
