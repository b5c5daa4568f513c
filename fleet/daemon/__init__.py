"""fleetd: configuration, wiring, listeners, lifetime. Builds the objects of the other packages and passes them down."""
