//go:build linux

package main

import "testing"

func TestTimeWaiting(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1B59 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100 0 0 10 0
   1: 0100007F:1B59 0100007F:C350 06 00000000:00000000 03:00000C1A 00000000     0        0 0 3 0
   2: 0100007F:C351 0100007F:1B59 06 00000000:00000000 03:00000C1A 00000000     0        0 0 3 0
   3: 0100007F:C352 0100007F:1B5A 06 00000000:00000000 03:00000C1A 00000000     0        0 0 3 0
   4: 0100007F:C353 0100007F:1B59 01 00000000:00000000 00:00000000 00000000     0        0 9 1 0
   5: 00000000000000000000000001000000:C354 00000000000000000000000001000000:1B59 06 0:0
   6: odd
`
	for port, want := range map[string]int{"7001": 3, "7002": 1, "7003": 0, "50002": 1, "0": 0, "": 0, "x": 0} {
		if got := timeWaiting(table, port); got != want {
			t.Errorf("port %q: %d, want %d", port, got, want)
		}
	}
}

func TestParseClients(t *testing.T) {
	const in = `{"load":"clients","clients":{"cold_s":4.5,"refusals":{"CODE_RATE":2,"CODE_PORT_TAKEN":1},"failures":5,"processes":[
		{"name":"serve","rss_bytes_per_client":9,"cpu_percent":9},
		{"name":"server","rss_bytes_per_client":20480,"cpu_percent":0.5}]}}`
	got, err := parseMeasurement([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"cold": 4.5, "refusals": 3, "failures": 5, "percent": 0.5, "kib": 20} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
