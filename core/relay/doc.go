// Package relay is the data plane: it accepts, dials and joins sockets in
// epoll loops, one loop per locked thread, and carries streams over framed
// ProxyConns that are used again and again.
//
// An Engine takes commands (Submit) and gives event batches (Events); outside
// it nobody touches a descriptor. Everything that belongs to one socket is
// touched by one loop only, so the data path has no locks:
//
//   - a listener is in the epoll set of every loop (EPOLLEXCLUSIVE); whichever
//     loop accepts keeps the PublicConn, or passes it to one that has far fewer
//     before anything is claimed for it;
//   - a pool of ProxyConns has one shard per loop; a PublicConn claims from the
//     shard of its own loop without a lock, a message or a system call but the
//     one that sends START;
//   - both descriptors of a pair are on one loop.
//
// Loops hold their scheduler slot for short waits (see poller.wait), so the
// process wants GOMAXPROCS of at least loops + 2.
package relay
