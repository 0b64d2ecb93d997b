"""Every setting as frozen dataclasses: one module per program family, torch-free."""
