package relay

import (
	"io"
	"net"
	"testing"
)

// echo sends back what it gets and passes the end on.
func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

func TestForwarder(t *testing.T) {
	f := startEngine(t, 2, DefaultSettings())
	at := f.listen(1, ToTarget{Target: serve(t, echo)})
	c := dialTCP(t, at)
	exchange(t, c, "hello")
	if ev := await[StreamEnded](f); ev.Reason != Done || ev.Up != 5 || ev.Down != 5 {
		t.Fatalf("ended with %+v", ev)
	}
}

// exchange sends a message, half-closes, and wants it back.
func exchange(t testing.TB, c *net.TCPConn, message string) {
	t.Helper()
	if _, err := io.WriteString(c, message); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != message {
		t.Fatalf("got %q, %v; want %q", got, err, message)
	}
}

func TestStreamsOverReusedConn(t *testing.T) {
	k := startLink(t, linkOptions{loops: 1, conns: 1, target: serve(t, echo)})
	for range 50 {
		exchange(t, dialTCP(t, k.public), "hello over a ProxyConn")
		for _, side := range []*fixture{k.server, k.client} {
			if ev := await[StreamEnded](side); ev.Reason != Done || ev.Up != 22 || ev.Down != 22 {
				t.Fatalf("ended with %+v", ev)
			}
		}
	}
}
