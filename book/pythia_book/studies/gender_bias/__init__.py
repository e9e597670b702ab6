"""The gender-bias intervention (paper section 3.1)."""
