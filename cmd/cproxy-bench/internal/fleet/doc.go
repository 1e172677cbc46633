// Package fleet is many CProxy clients in one process, to load a server's
// control plane with.
//
// A client of core/client brings an engine with threads of its own, so that
// thousands of them would measure their own host. A [Fleet] speaks the same
// protocol (docs/protocol.md) on core/wire, core/frame and core/identity with
// one goroutine per connection: it logs in over TLS 1.3 with a pinned key,
// registers its tunnels, answers pings, opens ProxyConns when it is asked to,
// and resumes by proof when it is cut off. Behind all of its tunnels is an echo.
package fleet
