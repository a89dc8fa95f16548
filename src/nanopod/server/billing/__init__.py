"""Usage into money, and money into documents: rating, charging, invoices."""
