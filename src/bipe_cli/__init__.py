"""The command line: one file a command, each parsing, calling one function of `bipe`, and printing.

It stands beside `bipe`, not inside it: importing `bipe` imports PyTorch and transformers, which takes
seconds, and `bipe --help` must not. So nothing here imports `bipe` before a command runs: each command's
function does it in its body.
"""
