//go:build linux

package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// panel is one comparison of the plot: everyone's ratio to one reference.
type panel struct {
	title, load, metric, reference string
	names                          []string
}

func panels() []panel {
	join := []string{"engine", "haproxy", "nginx"}
	two := []string{"tunnel", "engine2", "frp"}
	return []panel{
		{"bulk 1 flow, CPU per GB", "bulk1", "cpu", "copy", join},
		{"bulk 16 flows both ways, CPU per GB", "bulk16", "cpu", "copy", join},
		{"64 ping-pongs, CPU per round trip", "ping64", "cpu", "copy", join},
		{"64 ping-pongs, p99", "ping64", "p99", "copy", join},
		{"1000 ping-pongs, CPU per round trip", "ping1000", "cpu", "copy", join},
		{"ping-pongs beside bulk, p50", "mix", "p50", "copy", join},
		{"short connections, CPU each", "churn", "cpu", "copy", join},
		{"tunnel: bulk 1 flow, CPU per GB", "tunnel-bulk1", "cpu", "haproxy2", two},
		{"tunnel: bulk 16 flows, CPU per GB", "tunnel-bulk16", "cpu", "haproxy2", two},
		{"tunnel: 64 ping-pongs, CPU per round trip", "tunnel-ping64", "cpu", "haproxy2", two},
		{"tunnel: short connections, CPU each", "tunnel-churn", "cpu", "haproxy2", two},
	}
}

// Sizes of the plot in pixels.
const (
	plotWidth  = 860
	plotLeft   = 330
	plotRight  = 70
	barHeight  = 14
	panelSpace = 12
	plotTop    = 64
	plotOctave = 3 // the axis reaches from 1/8 to 8
)

// across is the place of a ratio on the logarithmic axis.
func across(ratio float64) float64 {
	octaves := min(max(math.Log2(ratio), -plotOctave), plotOctave)
	return plotLeft + (octaves+plotOctave)/(2*plotOctave)*(plotWidth-plotLeft-plotRight)
}

// plot draws the paired ratios: bars from 1 to the median, lines from least to
// largest. All metrics are such that less is better.
func plot(r *results) string {
	var body strings.Builder
	y := plotTop
	for _, p := range panels() {
		y = p.draw(&body, r, y)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, y+8)
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	text(&b, 12, 20, "start", "14", "Ratio to the io.Copy forwarder; for tunnels to two haproxy hops. Left of 1 is less: better.")
	for octave := -plotOctave; octave <= plotOctave; octave++ {
		ratio := math.Exp2(float64(octave))
		x, colour := across(ratio), "#ddd"
		if octave == 0 {
			colour = "#444"
		}
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/>`+"\n", x, plotTop-8, x, y, colour)
		label := fmt.Sprint(ratio)
		if octave < 0 {
			label = fmt.Sprintf("1/%g", 1/ratio)
		}
		text(&b, x, plotTop-14, "middle", "11", label)
	}
	b.WriteString(body.String() + "</svg>\n")
	return b.String()
}

// draw adds a panel and gives the place below it. One without numbers is left
// out.
func (p panel) draw(b *strings.Builder, r *results, y int) int {
	drawn := false
	for _, name := range p.names {
		s := r.paired(p.load, p.metric, name, p.reference)
		if s.n == 0 || s.median <= 0 {
			continue
		}
		if !drawn {
			text(b, 12, float64(y+barHeight-3), "start", "12", p.title)
			drawn = true
		}
		middle := float64(y) + barHeight/2
		from, to := min(across(1), across(s.median)), max(across(1), across(s.median))
		text(b, plotLeft-6, middle+4, "end", "11", name)
		fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", from, y+1, max(to-from, 1), barHeight-2, colourOf(name))
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#000"/>`+"\n", across(s.min), middle, across(s.max), middle)
		text(b, plotWidth-plotRight+8, middle+4, "start", "11", number(s.median))
		y += barHeight
	}
	if drawn {
		y += panelSpace
	}
	return y
}

func text(b *strings.Builder, x, y float64, anchor, size, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%s">%s</text>`+"\n", x, y, anchor, size, html.EscapeString(s))
}

func colourOf(name string) string {
	switch name {
	case "engine", "tunnel":
		return "#1f77b4"
	case "engine2":
		return "#9ecae1"
	case "haproxy":
		return "#ff7f0e"
	case "nginx":
		return "#2ca02c"
	default:
		return "#999"
	}
}
