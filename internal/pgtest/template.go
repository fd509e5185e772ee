package pgtest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/testdir"
)

// templates are clusters that no server has run on, one of each version that a
// private server was asked for. Making one takes initdb ten times as long as
// copying it does.
var templates struct {
	mu   sync.Mutex
	dir  string
	made map[pgserver.Binaries]string
}

// fromTemplate makes a cluster in data, which must not exist.
func fromTemplate(ctx context.Context, binaries pgserver.Binaries, data string) error {
	template, err := templateOf(ctx, binaries)
	if err != nil {
		return err
	}
	return copyData(ctx, template, data)
}

func templateOf(ctx context.Context, binaries pgserver.Binaries) (string, error) {
	templates.mu.Lock()
	defer templates.mu.Unlock()
	if made := templates.made[binaries]; made != "" {
		return made, nil
	}
	if templates.dir == "" {
		dir, err := testdir.New()
		if err != nil {
			return "", err
		}
		templates.dir, templates.made = dir, map[pgserver.Binaries]string{}
	}
	template := filepath.Join(templates.dir, strconv.Itoa(len(templates.made)))
	if err := pgserver.Create(ctx, template, binaries); err != nil {
		return "", err
	}
	templates.made[binaries] = template
	return template, nil
}

func removeTemplates() error {
	templates.mu.Lock()
	defer templates.mu.Unlock()
	if templates.dir == "" {
		return nil
	}
	return os.RemoveAll(templates.dir)
}
