"""Low-rank adapters of linear layers: their names, their layers, their export."""
