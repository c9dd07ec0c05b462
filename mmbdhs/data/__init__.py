"""What the user has: images, prompts and preference pairs, in memory and in files.

Read in this order: `images`, `messages` (both in all their forms), `keys` (how an example addresses its random
draws), `records` (pairs in the layout of TRL's vision preference datasets), `pair_faults` (pairs that teach nothing),
`jsonl` and `files` (how they are stored). Published data is read by `tables` and `arrow_tables` (files of any form as
raw rows), `conversations` and `layouts` (what a row says), and `readers` (rows as records); `streams` have no length.
`fingerprints` tell whether data has changed.
"""

from mmbdhs.data.files import remove_unfinished, sync, whole_file, write_whole
from mmbdhs.data.fingerprints import data_fingerprint
from mmbdhs.data.images import Images, ImageSource, load_images, stored_image
from mmbdhs.data.jsonl import read_jsonl, write_jsonl
from mmbdhs.data.keys import as_key, content_key, is_null, key_address
from mmbdhs.data.messages import ChatPrompt, Messages, Prompt, as_chat, as_messages, as_response, message_text
from mmbdhs.data.pair_faults import PAIR_FAULTS, pair_faults
from mmbdhs.data.readers import TURNS, Records, open_records, read_records, undecoded, usable_rows
from mmbdhs.data.records import preference_record
from mmbdhs.data.streams import RecordStream, decoded_by, is_stream
from mmbdhs.data.tables import is_dataset

__all__ = [
    "PAIR_FAULTS",
    "TURNS",
    "ChatPrompt",
    "ImageSource",
    "Images",
    "Messages",
    "Prompt",
    "RecordStream",
    "Records",
    "as_chat",
    "as_key",
    "as_messages",
    "as_response",
    "content_key",
    "data_fingerprint",
    "decoded_by",
    "is_dataset",
    "is_null",
    "is_stream",
    "key_address",
    "load_images",
    "message_text",
    "open_records",
    "pair_faults",
    "preference_record",
    "read_jsonl",
    "read_records",
    "remove_unfinished",
    "stored_image",
    "sync",
    "undecoded",
    "usable_rows",
    "whole_file",
    "write_jsonl",
    "write_whole",
]
