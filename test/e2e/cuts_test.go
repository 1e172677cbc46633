package e2e

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// A control connection that is lost takes no transfer with it, however often it
// happens while they run: a hundred times here, half of them with a reset, half
// of them in a network that drops packets without a word. The losses fall on
// several clients, since one that loses every connection waits longer and longer
// before the next.
func TestThousandTransfersHundredCuts(t *testing.T) {
	t.Parallel()
	const clients, each, cuts = 20, 50, 5
	w := newWorld(t, setup{server: "[timeouts]\nheartbeat = \"2s\""})
	sites := make([]*site, clients)
	for i := range sites {
		sites[i] = newSite(t, w, i)
	}
	started := time.Now()
	var tasks sync.WaitGroup
	for _, s := range sites {
		tasks.Go(func() { s.err = s.travel(each, cuts) })
	}
	tasks.Wait()
	var all tally
	for _, s := range sites {
		all.add(s.tally)
		if s.err != nil {
			t.Errorf("%s: %v", s.process.name, s.err)
		}
	}
	t.Logf("%d of %d transfers lost, %d MiB, in %v: the control connection was cut %d times (%d reset, %d silent)",
		all.lost, all.transfers, all.bytes>>20, time.Since(started).Round(time.Second), all.reset+all.silent, all.reset, all.silent)
	if all.lost > 0 || all.transfers != clients*each || all.reset+all.silent != clients*cuts || all.reset != all.silent {
		t.Errorf("%+v, want none of %d transfers lost in %d cuts, half of them silent", all, clients*each, clients*cuts)
	}
	// The client of the world has no tunnel.
	if n := w.server.stderr.count(`msg="client connected" .*resumed=true tunnels=1`); n < clients*cuts {
		t.Errorf("%d sessions were resumed, want %d", n, clients*cuts)
	}
	if n := w.server.stderr.count(`msg="client connected" .*resumed=false`); n != clients+1 {
		t.Errorf("%d sessions were begun, want one for each of %d clients", n, clients+1)
	}
	if n := w.server.stderr.count(`msg="tunnel open"`); n != clients {
		t.Errorf("tunnels were opened %d times, want %d", n, clients)
	}
}

// tally is what became of the transfers of a site.
type tally struct {
	transfers, lost, reset, silent int
	bytes                          int64
}

func (a *tally) add(b tally) {
	a.transfers += b.transfers
	a.lost += b.lost
	a.reset += b.reset
	a.silent += b.silent
	a.bytes += b.bytes
}

// site is one of many clients of a world, with a control connection of its own
// to cut and a tunnel to a service of the test.
type site struct {
	number  int
	process *process
	way     *cutter
	address string
	conns   <-chan stream
	tally   tally
	err     error
}

func newSite(t *testing.T, w *world, number int) *site {
	t.Helper()
	local, conns := manual(t, "127.0.0.1:0")
	s := &site{number: number, conns: conns, way: newCutter(t, w.ip, w.ctlAddress())}
	w.doors.ctl = append(w.doors.ctl, portIn(s.way.address))
	name := fmt.Sprintf("site-%02d", number)
	w.writeClient(name+".toml", strings.Replace(w.join, w.ctlAddress(), s.way.address, 1),
		fmt.Sprintf("name = %q", name), []tunnel{{name: "web", local: local.address}})
	s.process = w.startClient(name, name+".toml")
	s.address = w.address(s.process, "web")
	return s
}

// travel begins the transfers, cuts the control connection while they run, and
// then lets them end.
func (s *site) travel(transfers, cuts int) error {
	var hauls []*haul
	for i := range transfers {
		h, err := openHaul(uint64(s.number*transfers+i), s.address, s.conns)
		if err != nil {
			return err
		}
		hauls = append(hauls, h)
	}
	c := newConvoy(hauls, 10*time.Millisecond)
	var broken error
	for n := range cuts {
		// Every transfer moves before, during and after each cut.
		if broken = errors.Join(c.beyond(c.sent()), s.cut(c, (n+s.number)%2 == 0), c.beyond(c.sent())); broken != nil {
			break
		}
	}
	s.tally.transfers = transfers
	for _, n := range c.sent() {
		s.tally.bytes += n
	}
	var err error
	s.tally.lost, err = c.end()
	return errors.Join(broken, err)
}

// cut ends the control connection and waits until the client has another.
func (s *site) cut(c *convoy, silent bool) error {
	mark := s.process.stderr.mark()
	if silent {
		s.way.set(muted)
		s.way.set(passing) // the next one passes, that one never again
		s.tally.silent++
	} else {
		s.way.set(severed)
		s.tally.reset++
	}
	_, err := s.process.awaitLog(mark, `msg="lost the connection to the server; streams go on"`)
	err = errors.Join(err, c.beyond(c.sent()))
	s.way.set(passing)
	_, again := s.process.awaitLog(mark, `msg=connected .*resumed=true`)
	return errors.Join(err, again)
}

// A visitor for whom a ProxyConn was asked on a control connection that had
// fallen silent waits, and is served when the client is back.
func TestVisitorOfASilentClient(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]passage{"silent": muted, "reset": severed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var k *cutter
			local := serve(t, "tcp", "127.0.0.1:0", echo)
			w := newWorld(t, setup{
				server:  "[pool]\nmax = 0\n[timeouts]\nheartbeat = \"500ms\"\nconnect = \"30s\"",
				tunnels: []tunnel{{name: "web", local: local.address}}, way: through(t, &k),
			})
			address, mark := w.web(), w.client.stderr.mark()
			k.set(way)
			visitor := visit(t, address)
			if _, err := io.WriteString(visitor, "early"); err != nil {
				t.Fatal(err)
			}
			w.log(w.client, mark, `msg="lost the connection to the server; streams go on"`)
			k.set(passing)
			w.log(w.client, mark, `msg=connected .*resumed=true`)
			hear(t, visitor, "early")
			visitor.Close()
		})
	}
}
