"""Image shards to token shards: codes and text ids of frozen tokenizers."""
