"""How anything of ours reaches the disk and comes back: files, folders, JSON and JSON Lines."""
