"""What a run writes about its data: ledger, damage, skipped updates."""
