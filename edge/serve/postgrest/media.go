package postgrest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Media is the form of an answer.
type Media uint8

// The forms.
const (
	MediaJSON Media = iota
	// MediaObject is one row that is no array; any other number of rows is an error.
	MediaObject
	MediaCSV
)

// ContentType is the header's value.
func (m Media) ContentType() string {
	return [...]string{"application/json; charset=utf-8", "application/vnd.pgrst.object+json; charset=utf-8", "text/csv; charset=utf-8"}[m]
}

// parseAccept chooses the first form there is, in the order of the client's
// weights.
func parseAccept(headers []string) (Media, error) {
	if len(headers) == 0 || len(headers) == 1 && (headers[0] == "application/json" || headers[0] == "*/*") {
		return MediaJSON, nil
	}
	type wanted struct {
		name   string
		weight float64
	}
	var all []wanted
	for _, header := range headers {
		for text := range strings.SplitSeq(header, ",") {
			if text = strings.TrimSpace(text); text == "" {
				continue
			}
			w := wanted{text, 1}
			for param := range strings.SplitSeq(text, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
				if strings.EqualFold(name, "q") {
					if n, err := strconv.ParseFloat(value, 64); err == nil {
						w.weight = n
					}
				}
			}
			if w.weight > 0 {
				all = append(all, w)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b wanted) int {
		switch {
		case a.weight > b.weight:
			return -1
		case a.weight < b.weight:
			return 1
		}
		return 0
	})
	names := make([]string, len(all))
	for i, w := range all {
		names[i] = w.name
		name, params, _ := strings.Cut(w.name, ";")
		if strings.Contains(strings.ToLower(params), "nulls=stripped") {
			continue
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "*/*", "application/*", "application/json", "application/vnd.pgrst.array+json", "application/vnd.pgrst.array":
			return MediaJSON, nil
		case "application/vnd.pgrst.object+json", "application/vnd.pgrst.object":
			return MediaObject, nil
		case "text/csv", "text/*":
			return MediaCSV, nil
		}
	}
	if len(all) == 0 {
		return MediaJSON, nil
	}
	return 0, &Error{
		Status: http.StatusNotAcceptable, Code: "PGRST107",
		Message: "None of these media types are available: " + strings.Join(names, ", "),
		Hint:    "There are application/json, application/vnd.pgrst.object+json and text/csv, none of them with nulls=stripped.",
	}
}
