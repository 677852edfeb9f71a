"""Preference pairs: read and validate them, tokenise them, split and order them, write them."""

from prefopt.data.encode import encode_conversations, encode_prompt, encode_prompts, encode_response
from prefopt.data.load import check_unchanged, load_pairs
from prefopt.data.order import check_no_leak, pair_order, require_enough, split_by_prompt
from prefopt.data.prompts import LoadedPrompts, check_no_prompt_leak, load_prompts
from prefopt.data.sources import local_files, sha256_of
from prefopt.data.summary import pair_facts
from prefopt.data.tokenize import hash_ids, tokenize_pairs
from prefopt.data.types import BadRows, LoadedPairs, LoadReport, Message, Pair, Text, TokenizedPairs, TokenPair
from prefopt.data.write import pairs_to_rows, write_jsonl

__all__ = [
    "BadRows",
    "LoadReport",
    "LoadedPairs",
    "LoadedPrompts",
    "Message",
    "Pair",
    "Text",
    "TokenPair",
    "TokenizedPairs",
    "check_no_leak",
    "check_no_prompt_leak",
    "check_unchanged",
    "encode_conversations",
    "encode_prompt",
    "encode_prompts",
    "encode_response",
    "hash_ids",
    "load_pairs",
    "load_prompts",
    "local_files",
    "pair_facts",
    "pair_order",
    "pairs_to_rows",
    "require_enough",
    "sha256_of",
    "split_by_prompt",
    "tokenize_pairs",
    "write_jsonl",
]
