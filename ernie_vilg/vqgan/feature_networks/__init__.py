"""Networks whose features compare pictures: trained elsewhere, read from files, never trained."""
