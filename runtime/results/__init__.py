"""Files of results: rows that survive a kill, shards of them, and one file merged of all."""

from drexperts.runtime.results.opening import ResultWriter as ResultWriter
from drexperts.runtime.results.opening import open_results as open_results
from drexperts.runtime.results.result_file import ResultFile as ResultFile
