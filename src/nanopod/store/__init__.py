"""Where the cloud's truth is kept: schema, migrations, transactions on SQLite or PostgreSQL, blobs in a directory.

| file | what |
| --- | --- |
| `open` | the store a cloud is configured with |
| `sqlite`, `postgres` | the two databases |
| `writer` | what they share: one writer thread with group commit, a pool of readers, hints and news |
| `transaction` | what a transaction can do; put together from one class per noun |
| `base`, `driver` | what these classes share; the driver's own statements for hot paths |
| `schema`, `market_schema`, `ledger_schema` | the tables |
| `migrate`, `market_step` | bring a database to this version |
| `blobs` | files named by their SHA-256 |
"""
