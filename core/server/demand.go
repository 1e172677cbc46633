package server

import "time"

// A report of waiting PublicConns is repeated every second while they wait, so
// an older one is void; so is a request for ProxyConns that nobody answered.
const (
	reportLife  = 1500 * time.Millisecond
	requestLife = 3 * time.Second
)

// maxNeed is the most ProxyConns asked for in one message.
const maxNeed = 256

// demand decides how many ProxyConns a client is asked for.
type demand struct {
	waiting map[int]report // by loop
	asked   int            // asked for and not arrived
	askedAt time.Time
	since   time.Time     // when the first of them was asked for; zero once one arrived
	refill  time.Duration // from asking to arriving, lately
}

type report struct {
	n  int
	at time.Time
}

// noted takes a loop's report.
func (d *demand) noted(loop, n int, now time.Time) {
	if d.waiting == nil {
		d.waiting = make(map[int]report)
	}
	d.waiting[loop] = report{n, now}
}

// arrived counts a new ProxyConn, which serves one that waits.
func (d *demand) arrived(now time.Time) {
	d.asked = max(0, d.asked-1)
	if !d.since.IsZero() {
		d.refill = max(now.Sub(d.since), d.refill*3/4)
		d.since = time.Time{}
	}
	most := -1
	for loop, r := range d.waiting {
		if most < 0 || r.n > d.waiting[most].n {
			most = loop
		}
	}
	if r := d.waiting[most]; r.n > 0 {
		r.n--
		d.waiting[most] = r
	}
}

// ask gives the number of ProxyConns to ask for now, and notes it as asked: one
// for each PublicConn that waits, and so many spare ones.
func (d *demand) ask(spare int, now time.Time) int {
	total := spare
	for loop, r := range d.waiting {
		if now.Sub(r.at) > reportLife {
			delete(d.waiting, loop)
			continue
		}
		total += r.n
	}
	if d.asked > 0 && now.Sub(d.askedAt) > requestLife {
		d.asked = 0
	}
	n := min(total-d.asked, maxNeed)
	if n <= 0 {
		return 0
	}
	if d.asked == 0 {
		d.since = now
	}
	d.asked += n
	d.askedAt = now
	return n
}
