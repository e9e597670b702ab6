"""The released Pythia: fetched, converted, audited, its data streamed, its training continued."""
