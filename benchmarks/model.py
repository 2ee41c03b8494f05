"""What a training step of a scheme costs, relative to transformers' Llama of the same size.

    python benchmarks/model.py --lengths 1024,4096 --rounds 7

The same as `bipe bench model`.
"""

import sys

from bipe_cli.main import app, run

if __name__ == "__main__":
    sys.exit(run(app, ["bench", "model", *sys.argv[1:]]))
