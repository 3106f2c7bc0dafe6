"""Which rows a results folder holds, and how they are paired."""
