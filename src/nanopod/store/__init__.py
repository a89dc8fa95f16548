"""Where the cloud's truth is kept: schema, migrations, transactions on SQLite, blobs in a directory.

| file | what |
| --- | --- |
| `schema` | the tables |
| `migrate` | brings a database to this version |
| `sqlite` | one writer thread with group commit, a pool of readers |
| `transaction` | what a transaction can do; put together from one class per noun |
| `blobs` | files named by their SHA-256 |
"""
