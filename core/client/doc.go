// Package client is the private side of CProxy: it keeps a control connection
// (CtlConn) to one server, registers tunnels there, opens ProxyConns when the
// server asks for some, and tells the engine of package relay where the
// LocalServer of each tunnel is.
//
// A [Client] has one goroutine that owns all of its state, the owner. It hears
// from
//
//   - the engine (ProxyConns that opened, failed and closed, streams that
//     ended),
//   - the goroutine that reads the CtlConn,
//   - the goroutine of a connection attempt,
//   - the goroutines that resolve the host names of LocalServers,
//   - [Client.Reconfigure].
//
// and waits for none of them. Messages to the server are written by a goroutine
// of the CtlConn.
//
// Control and data are decoupled. When the CtlConn is lost, ProxyConns, targets
// and streams stay; the client comes back with a proof that it knows the session
// key and goes on where it was. Only when the server does not know the session
// any more is the pool closed, and then its streams end by themselves.
package client
