"""What the user has: images, prompts and preference pairs, in memory and in files.

Read in this order: `images`, `messages` (both in all their forms), `keys` (how an example addresses its random
draws), `records` (pairs in the layout of TRL's vision preference datasets), `pair_faults` (pairs that teach nothing),
`jsonl` and `files` (how they are stored).
"""

from mmbdhs.data.files import sync, write_whole
from mmbdhs.data.images import Images, ImageSource, load_images
from mmbdhs.data.jsonl import read_jsonl, write_jsonl
from mmbdhs.data.keys import as_key, content_key, is_null, key_address
from mmbdhs.data.messages import ChatPrompt, Messages, Prompt, as_chat, as_messages, as_response, message_text
from mmbdhs.data.pair_faults import PAIR_FAULTS, pair_faults
from mmbdhs.data.records import preference_record, read_records, usable_rows

__all__ = [
    "PAIR_FAULTS",
    "ChatPrompt",
    "ImageSource",
    "Images",
    "Messages",
    "Prompt",
    "as_chat",
    "as_key",
    "as_messages",
    "as_response",
    "content_key",
    "is_null",
    "key_address",
    "load_images",
    "message_text",
    "pair_faults",
    "preference_record",
    "read_jsonl",
    "read_records",
    "sync",
    "usable_rows",
    "write_jsonl",
    "write_whole",
]
