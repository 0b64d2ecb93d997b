"""Records of a run about its data: ledger, damage, skipped updates."""
