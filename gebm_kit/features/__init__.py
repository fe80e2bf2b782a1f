"""Feature maps on which metrics compare sets of draws."""
