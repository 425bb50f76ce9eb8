"""A bundle behind LitServe, to compare `drx serve` with: one Scorer, batches across requests.

    uv run --no-project --with litserve --with "drexperts[cpu] @ ." python \
        benchmarks/serve_with_litserve.py BUNDLE PORT
"""

import base64
import sys
from typing import Any

import litserve

from drexperts import runtime


class Scores(litserve.LitAPI):  # type: ignore[misc]  # it is not installed with us
    """Images in JSON to rows."""

    def setup(self, device: str) -> None:
        self.scorer = runtime.load(sys.argv[1], isolated=True)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def predict(self, images: list[bytes]) -> list[dict[str, Any]]:
        return [score.as_row() for score in self.scorer.score_stream(images)]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Scores(max_batch_size=8, batch_timeout=0.01)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False
    )
