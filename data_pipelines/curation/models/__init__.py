"""Models that judge pictures and pairs or translate captions, loaded from local folders."""
