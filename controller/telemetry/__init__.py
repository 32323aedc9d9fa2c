"""What devices report: stored once, acknowledged, kept as series, shown as metrics."""
