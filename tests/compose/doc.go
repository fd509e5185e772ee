// Package compose checks docker-compose.yml with the parser that Docker Compose
// itself is built on. No container engine is needed for it.
package compose
