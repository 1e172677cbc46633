// Package server is the control plane of cproxy-server: it admits clients,
// keeps their Controls, registers tunnels and tells the relay engine what to
// do.
//
// One goroutine, the hub, owns all Controls and all that belongs to them. Every
// control connection has a goroutine that reads it and passes on what came;
// the engine reports in batches. The hub answers without ever blocking: what
// must wait (a handshake, an authenticator, a write to a slow client) happens
// on the goroutine of the connection concerned.
package server
