"""The only door to sbi: specs build estimators, `ManifoldNLE` trains them, posteriors are sbi's own."""
