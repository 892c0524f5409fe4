"""What `import` can bring in, one file a kind: each lists its rows, then reads them in order."""
