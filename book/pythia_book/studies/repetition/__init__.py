"""Data read several times at equal compute."""
