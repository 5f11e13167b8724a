"""Data: files of tables and arrays, the bundled data sets, their encoding as arrays, and minibatches."""
