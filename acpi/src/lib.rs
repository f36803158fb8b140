//! ACPI tables: a `DomainTopology` becomes the bytes of RSDP, XSDT, FADT, MADT and DSDT.
