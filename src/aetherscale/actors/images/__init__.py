"""Base images: brought in, checked before anything reads them, built, and kept for as long as they are used."""
