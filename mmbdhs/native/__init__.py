"""Native ops: checked and registered in `ops`, with a plain twin of each in `reference`."""
