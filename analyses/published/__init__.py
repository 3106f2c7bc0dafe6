"""Published figures, and whether they follow from what is behind them."""
