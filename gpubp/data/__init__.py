"""Data: tables read from CSV files, the bundled data sets, their encoding as arrays, and minibatches."""
