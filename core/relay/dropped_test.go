package relay

import (
	"strings"
	"testing"

	"github.com/cproxy/cproxy/core/frame"
)

// However much of a stream was under way when the client reset it, the conn
// carries the next one: the server may have sent its START already.
func TestClientDropsAllAfterReset(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	p := f.peer(t)
	underWay := dataFrame(1, strings.Repeat("x", maxDropped))
	p.send(startFrame(1, linkWire), dataFrame(1, "begun"))
	service := s.take(t)
	hear(t, service, "begun")
	reset(t, service)
	p.wantReset(1, frame.ResetPeer)
	for range 20 {
		p.send(underWay)
	}
	p.send(resetFrame(1, frame.ResetAcknowledge), startFrame(2, linkWire), dataFrame(2, "next"))
	hear(t, s.take(t), "next")
}
