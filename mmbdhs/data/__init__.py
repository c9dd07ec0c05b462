"""What the user has: preference pairs and their files."""

from mmbdhs.data.jsonl import read_jsonl, write_jsonl
from mmbdhs.data.keys import content_key, key_address
from mmbdhs.data.messages import Images, ImageSource, Messages, as_messages, load_images, message_text
from mmbdhs.data.records import preference_record, read_records, usable_rows

__all__ = [
    "ImageSource",
    "Images",
    "Messages",
    "as_messages",
    "content_key",
    "key_address",
    "load_images",
    "message_text",
    "preference_record",
    "read_jsonl",
    "read_records",
    "usable_rows",
    "write_jsonl",
]
