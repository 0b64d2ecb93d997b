"""Models that judge pictures and pairs, or translate captions; all are loaded from local folders."""
