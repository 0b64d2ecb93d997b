"""Groups, coordinates, collectives, rendezvous."""
