"""Texts, their token ids, and the blocks that models are trained on."""

from .documents import Document, load_documents, split_documents
from .packing import PackedBlocks, hold_out_tails, pack
from .tokens import encode, load_tokenizer, token_bytes, train_tokenizer

__all__ = [
    "Document",
    "PackedBlocks",
    "encode",
    "hold_out_tails",
    "load_documents",
    "load_tokenizer",
    "pack",
    "split_documents",
    "token_bytes",
    "train_tokenizer",
]
