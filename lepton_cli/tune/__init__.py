"""The search behind `lepton tune`: what can be tried, what was tried, what to try next."""
