"""Image shards from raw pairs: inspect every row, relate rows, write shards."""
