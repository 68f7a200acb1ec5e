"""What must outlive the process, in SQL: API keys, usage, comparisons and votes. SQLite by default, PostgreSQL by URL.

`Database` opens and migrates it, `tables` says what is in it; the rules live in the services that use it."""
